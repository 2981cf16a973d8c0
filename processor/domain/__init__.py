"""What is allowed and what follows from it: pure, without clock, I/O, await or logging."""
