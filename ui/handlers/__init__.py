"""What the page does when it is asked, by area; each reads its arguments through ``checks``, whoever calls."""
