"""From folders of pictures and videos to label files that other tools read."""
