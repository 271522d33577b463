"""The HTTP API of a running node: loopback only, for the command line and for the web page."""

from node.http.server import serve_http

__all__ = ["serve_http"]
