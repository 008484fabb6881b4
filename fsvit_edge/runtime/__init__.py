"""What all of a device stands on: engines, bundle, pictures and files. Needs numpy, OpenCV and one engine."""
