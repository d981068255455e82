"""What adapters are made of: an object's own class around a few methods, and what those do.

`transparent.wrap` makes the clone, `seam.serve` one call of it, `fingerprint` what tells one object
apart from others in keys. The other files are what both frameworks' adapters share by sort of
component.
"""
