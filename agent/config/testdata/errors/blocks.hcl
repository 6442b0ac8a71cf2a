cluster {
  join = ["10.0.0.2:7420"]
  server = false
}
cluster {}
etcd {
  cert_file = "/a"
  username  = "u"
  prefix    = "moraine"
}
backend {
  pool = "a"
}
backend "local" {
  pool = "-"
  conf {}
  config {}
  config {}
}
backend "lo cal" {}
runtime "csi" {
  endpoint = "unix:///csi/csi.sock"
}
runtime "doker" {}
runtime "docker" {
  socket = "moraine.sock"
}
runtime "docker" {}
plugin "x" {}
plugin "y" {
  sha256 = "abc"
}
