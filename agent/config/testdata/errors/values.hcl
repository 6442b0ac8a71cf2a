name = "node a"
address = "/run/moraine/agent.sock/"
labels = { "bad key" = "x" }
ports {
  api = 70000
  nbd = "7421"
  metrics = 7420
}
defaults {
  size     = "1EiB"
  fs       = "ext5"
  driver   = "fuse"
  replicas = 2
  min_in_sync = 3
  extent   = "65KiB"
  region   = -1
}
timeouts {
  hold        = "2m"
  nbd_timeout = "1500ms"
  node_lease  = 5
  stop        = "0s"
}
