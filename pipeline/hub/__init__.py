"""Releases in the form of the Hugging Face Hub: folders with a card, what is private in them, and their push."""
