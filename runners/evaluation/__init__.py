"""What is measured on a model without changing it: probes, one a file."""
