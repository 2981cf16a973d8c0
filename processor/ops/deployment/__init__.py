"""The files of a deployment: manifests for Kubernetes, units for systemd, and a Dockerfile."""
