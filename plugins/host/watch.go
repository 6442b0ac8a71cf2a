package host

import (
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

// watch tells instances when their file in the plugin directory may have
// changed, after Debounce of quiet. It is only a hint: the health tick looks at the
// files as well, because some file systems send no events. It returns a
// function that ends the watch.
func (h *Host) watch() (stop func()) {
	if h.o.PluginDir == "" {
		return func() {}
	}
	w, err := fsnotify.NewWatcher()
	if err == nil {
		if err = w.Add(h.o.PluginDir); err != nil { // the directory, not the files: they are replaced by rename
			w.Close()
		}
	}
	if err != nil {
		h.log.Warn("plugin directory is not watched; changes are seen at health checks", "dir", h.o.PluginDir, "error", err)
		return func() {}
	}
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		defer w.Close()
		h.watchLoop(w, quit)
	}()
	return func() { close(quit); <-done }
}

func (h *Host) watchLoop(w *fsnotify.Watcher, quit <-chan struct{}) {
	pending := map[string]bool{} // plugin names; cleared when told
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	defer timer.Stop()
	for {
		select {
		case <-quit:
			return
		case e, ok := <-w.Events:
			if !ok {
				return
			}
			if name, ok := strings.CutPrefix(filepath.Base(e.Name), Prefix); ok && len(pending) < maxInstances {
				pending[name] = true
				timer.Reset(h.t.Debounce)
			}
		case err, ok := <-w.Errors: // an overflow: anything may have changed
			if !ok {
				return
			}
			h.log.Debug("watch plugin directory", "error", err)
			h.tell(nil)
		case <-timer.C:
			h.tell(pending)
			clear(pending)
		}
	}
}

// tell wakes the instances of these plugins, or all when names is nil.
func (h *Host) tell(names map[string]bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, i := range h.instances {
		if names == nil || names[i.spec.Plugin] {
			select {
			case i.changed <- struct{}{}:
			default: // it is told already
			}
		}
	}
}
