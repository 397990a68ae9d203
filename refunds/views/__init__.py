"""The screens of staff, a module for each kind of them. What they share is in common.py."""
