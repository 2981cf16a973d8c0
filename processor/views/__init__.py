"""The read side: a Faust application that makes the audit stream queryable. See README.md."""
