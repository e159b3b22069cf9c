"""What is measured, how, against what. Results are in results/, written by these commands and never by hand."""
