"""M3PO (arXiv 2506.21782): the policy learns by a clipped ratio."""
