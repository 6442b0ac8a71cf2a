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

	failOnce sync.Once
	failed   chan struct{} // closed after a fatal entry
	reason   string        // what that entry said; set before failed is closed
}

// newZap returns the logger for etcd. A fatal entry ends the goroutine that
// logs it, not the process (invariant 3), after marking the store as failed.
func newZap(log hclog.Logger) (*zap.Logger, *logState) {
	st := &logState{log: log, failed: make(chan struct{})}
	lg := zap.New(&logCore{log: log, state: st}, zap.WithFatalHook(fatalHook{st}))
	return lg, st
}

func (c *logCore) Enabled(l zapcore.Level) bool {
	if l >= zapcore.WarnLevel && c.state.serving.Load() || l >= zapcore.DPanicLevel {
		return true
	}
	return l >= zapcore.InfoLevel && c.log.IsDebug()
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
	if e.Level == zapcore.FatalLevel {
		c.state.fail(e.Message, enc.Fields["error"])
	}
	return nil
}

func (c *logCore) Sync() error { return nil }

func (s *logState) fail(msg string, cause any) {
	s.failOnce.Do(func() {
		s.reason = msg
		if text, ok := cause.(string); ok {
			s.reason += ": " + text
		}
		close(s.failed)
	})
}

// note writes a line of our own.
func (s *logState) note(msg string, err error) { s.log.Debug(msg, "error", err) }

// fatalHook replaces zap's os.Exit.
type fatalHook struct{ st *logState }

func (h fatalHook) OnWrite(ce *zapcore.CheckedEntry, _ []zapcore.Field) {
	h.st.fail(ce.Message, nil) // if Write did not
	runtime.Goexit()
}
