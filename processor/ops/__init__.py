"""Tools for those who run taskflow. Nothing here takes part in deciding a command."""
