"""A model that reads past steps beside the present one (`model.history`)."""
