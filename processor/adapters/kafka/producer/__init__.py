"""Write records, in transactions and outside of them."""
