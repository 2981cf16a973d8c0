"""The parts that the commands of the program share."""
