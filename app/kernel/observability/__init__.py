"""What the program tells about itself: logs, metrics, traces, and how its event loop and its memory are doing."""
