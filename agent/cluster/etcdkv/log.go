package etcdkv

import (
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// logCore carries etcd's log into ours. etcd is talkative, above all when it
// starts and stops: what it says then, and all it says as information, goes to
// debug; what it warns of while it serves keeps its level.
type logCore struct {
	log    hclog.Logger
	fields []zapcore.Field
	state  *logState
}

// logState is shared by all children of one core.
type logState struct {
	log     hclog.Logger
	serving atomic.Bool // warnings are for people only while this holds

	mu        sync.Mutex
	lastError string // the text of the newest error entry; says more than a panic

	failOnce sync.Once
	failed   chan struct{} // closed after a fatal entry or a panic at start
	reason   string        // what that entry said; set before failed is closed
}

// newZap returns the logger for etcd. A fatal entry, and one that etcd panics
// over, ends the goroutine that logs it, not the process (invariant 3), after
// marking the store as failed.
func newZap(log hclog.Logger) (*zap.Logger, *logState) {
	st := &logState{log: log, failed: make(chan struct{})}
	lg := zap.New(&logCore{log: log, state: st}, zap.WithFatalHook(endHook{st}), zap.WithPanicHook(endHook{st}))
	return lg, st
}

func (c *logCore) Enabled(l zapcore.Level) bool {
	if l >= zapcore.WarnLevel && c.state.serving.Load() {
		return true
	}
	return l >= zapcore.ErrorLevel || l >= zapcore.InfoLevel && c.log.IsDebug()
}

func (c *logCore) With(f []zapcore.Field) zapcore.Core {
	n := *c
	n.fields = append(append([]zapcore.Field(nil), c.fields...), f...)
	return &n
}

func (c *logCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c *logCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	level := hclog.Debug
	switch {
	case e.Level >= zapcore.DPanicLevel:
		level = hclog.Error
	case !c.state.serving.Load():
	case e.Level >= zapcore.ErrorLevel:
		level = hclog.Error
	case e.Level >= zapcore.WarnLevel:
		level = hclog.Warn
	}
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range c.fields {
		f.AddTo(enc)
	}
	for _, f := range fields {
		f.AddTo(enc)
	}
	args := make([]any, 0, 2*len(enc.Fields))
	for k, v := range enc.Fields {
		args = append(args, k, v)
	}
	c.log.Log(level, e.Message, args...)
	if e.Level >= zapcore.ErrorLevel {
		c.state.remember(e.Message, enc.Fields["error"])
	}
	if e.Level >= zapcore.PanicLevel {
		c.state.fail(e.Message)
	}
	return nil
}

func (c *logCore) Sync() error { return nil }

// remember keeps the text of an error entry.
func (s *logState) remember(msg string, cause any) {
	if text, ok := cause.(string); ok {
		msg += ": " + text
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastError = msg
}

// fail marks the store as failed, for the reason of the newest error entry if
// there is one, else for msg.
func (s *logState) fail(msg string) {
	s.failOnce.Do(func() {
		s.mu.Lock()
		s.reason = msg
		if s.lastError != "" {
			s.reason = s.lastError
		}
		s.mu.Unlock()
		close(s.failed)
	})
}

// end marks the store as failed for that reason, whatever was logged before.
func (s *logState) end(reason string) {
	s.failOnce.Do(func() {
		s.reason = reason
		close(s.failed)
	})
}

// note writes a line of our own.
func (s *logState) note(msg string, err error) { s.log.Debug(msg, "error", err) }

// endHook replaces zap's os.Exit and panic.
type endHook struct{ st *logState }

func (h endHook) OnWrite(ce *zapcore.CheckedEntry, _ []zapcore.Field) {
	h.st.fail(ce.Message) // if Write did not
	runtime.Goexit()
}
