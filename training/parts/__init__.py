"""Pictures and captions to numbers: codecs, extractors, text encoders, and their weights."""
