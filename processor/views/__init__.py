"""The read side: a Faust application that makes the audit queryable. See README.md."""
