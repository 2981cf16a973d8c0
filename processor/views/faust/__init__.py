"""What the views use of Faust, and what they override."""
