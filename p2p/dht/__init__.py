"""Signed, expiring records on hivemind's DHT, kept in a child process of their own."""
