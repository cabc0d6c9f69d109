"""Families of laws, one file each, all linear in their coefficients once their shape is fixed."""
