"""The web page of a run, http://127.0.0.1:8080: shows the camera and enrolls from the browser. Needs `[web]`."""
