"""Pages, figures and words for people."""
