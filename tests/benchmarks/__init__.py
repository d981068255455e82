"""Commands that print what they measured, side by side in one run; none is a timed test."""
