"""`make chaos`: every part killed at random while it holds work, and every accepted job ended exactly once."""
