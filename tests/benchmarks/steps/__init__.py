"""What managed steps cost, and how fast they are handed out."""
