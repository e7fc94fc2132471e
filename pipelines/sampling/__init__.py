"""From a prompt or a picture to an orbit."""
