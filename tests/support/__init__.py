"""What the tests share: real counterparts of the systems that ragaccel talks to."""
