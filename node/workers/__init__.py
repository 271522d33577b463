"""Programs the node runs beside itself: what holds torch must not hold the event loop."""
