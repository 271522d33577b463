"""What crosses the network: identity, signed records, claims, blobs, gossip and requests."""
