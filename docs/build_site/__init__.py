"""What the site is built with."""
