"""What a deployment is made of: manifests for Kubernetes, units for systemd, and a Dockerfile."""
