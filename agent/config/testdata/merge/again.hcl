log {
  format = "json"
}
