"""The program `taskflow`: one module per noun. `processor.cli` is its door."""
