"""The program `taskflow`: one module per noun. `processor.cli.main` is its door."""
