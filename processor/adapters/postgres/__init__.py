"""PostgreSQL: connections, tables of a format, and what runs for as long as it has both."""
