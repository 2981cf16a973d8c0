"""The parts of Faust that the views use, and what they override."""
