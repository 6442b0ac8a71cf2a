name = "a"
log {
  level = "info
}
bind = "x"
