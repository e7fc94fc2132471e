"""The web app: a page, endpoints for programs, and the one worker behind both."""
