"""Where to split: what a device can observe, what that costs, and who decides."""
