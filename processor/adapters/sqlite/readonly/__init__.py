"""Read tables beside their worker, and exports of them."""
