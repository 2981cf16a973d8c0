"""Break a deployment on purpose: failpoints and chaos runs."""
