"""The program `taskflow`, a folder for each family of commands; `cli.main` runs it."""
