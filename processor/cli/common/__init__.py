"""What the commands of the program share."""
