"""Run recorded commands through this code, and compare what it decides."""
