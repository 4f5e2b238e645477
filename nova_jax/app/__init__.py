"""The app: videos and pictures in a browser, for one person or many at once."""
