"""Other published systems, each as an extension of the core: off unless a parameter turns it on."""
