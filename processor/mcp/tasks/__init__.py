"""Tools whose work executors do: each call is a flow, and a task of the Tasks extension."""
